import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.Base64;

/** For each line, an address: sends a request with a new HttpClient of Java's own, and prints the
    body of its response in Base64, or "error". */
public class HttpClients {
    public static void main(String[] arguments) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            System.out.println(request(line, arguments[0]));
        }
    }

    private static String request(String address, String body) {
        HttpRequest request = HttpRequest.newBuilder(URI.create(address))
            .version(HttpClient.Version.HTTP_1_1)
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
        try {
            HttpResponse<byte[]> response =
                HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofByteArray());
            boolean good = response.statusCode() == 200;
            return good ? Base64.getEncoder().encodeToString(response.body()) : "error";
        } catch (Exception error) {
            return "error";
        }
    }
}
